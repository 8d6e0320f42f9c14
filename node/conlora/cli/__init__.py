"""The command line. Modules import what they need inside commands, so that `conlora --help` is quick."""
