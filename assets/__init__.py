"""The embedded models: package data, read through `flowrl.shapes.paths.asset`."""
