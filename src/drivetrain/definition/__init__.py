"""The lifecycle file: its types, how it is read, and what is wrong with it, said with file, line, key and a suggestion.

Nothing here runs user code or knows how a stage works. What the file *means* belongs here; what is done about it does not.
"""
