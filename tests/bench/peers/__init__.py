"""Whom we compare with, and what bounds us. Each runs in a process of its own, with access logs off."""
