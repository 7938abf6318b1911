"""The embedded video world: moving coloured shapes, their verifier, the model trained on it. Importing it loads nothing heavy."""
