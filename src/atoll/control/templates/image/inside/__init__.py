"""Programs that run inside the sandbox of an import: standard library only, and nothing of ours but each other.

`image.importer` stores them there as files; the packages above them are bare directories then.
"""
