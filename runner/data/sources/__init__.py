"""Layouts of data sets on disk and on the Hub, one file each; `find.find` picks the one that matches a path."""
