"""The entropy coder: integer arrays to bits and back. Knows no names, no floats and no files."""
