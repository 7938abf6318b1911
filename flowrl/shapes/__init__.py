"""The embedded world: coloured shapes, their verifier, and the models trained on it. Importing it loads nothing heavy."""
