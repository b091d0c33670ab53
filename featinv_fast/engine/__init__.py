"""The engine folder: manifest, graph specs, integrity and atomic installation. Standard library only."""
