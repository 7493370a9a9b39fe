"""Drivetrain: a machine-learning lifecycle as one closed loop.

The package itself holds nothing but its version, so that `import drivetrain` costs nothing.
"""

__version__ = "0.1.0"
