"""The embedded video world: moving coloured shapes, their verifier, and the model trained on it. Importing it loads nothing heavy."""
