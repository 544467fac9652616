"""Volumes on the machine that has them: their images, and the programs that serve their contents.

store       images, devices, records: as root, never looks into a volume
servers     one program for each volume that is asked for, started on demand
confined    how such a program gives up all but the volume: nobody on the host, the volume is its whole world
content     the interface of the contents, served by it
tree        paths of a volume, and what is done to them
"""
