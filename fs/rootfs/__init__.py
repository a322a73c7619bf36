"""Kernel-native root file systems made from a repository's trees."""
