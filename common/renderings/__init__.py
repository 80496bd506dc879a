"""What a guest may know of itself, in the forms that the world's guests read: one document, several renderings. Pure.

md_server serves them over HTTP, ecompute puts the same files on a config drive.
"""
