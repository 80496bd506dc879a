"""The words and options of each verb, a module for each field. Imports nothing that takes time."""
