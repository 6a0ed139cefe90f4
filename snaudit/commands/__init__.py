"""The commands: each runs what was asked and says what came out; `cli` parses and explains errors."""
