"""A node plugin of the Container Storage Interface: paths of mounted repositories as read-only volumes of pods.

There is no controller: a volume is nothing but the name of a repository and a path in it, which are in its attributes.
The repositories are mounted by somebody else, below one directory (``/cvmfs``); a volume is a bind mount.
"""
