"""Votes of people: a local page that asks which of two images of a prompt is better, and the book it keeps."""
