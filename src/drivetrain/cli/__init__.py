"""The commands. Each module is imported only when its command runs; `main.py` knows them by name alone."""
