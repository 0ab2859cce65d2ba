"""The HTTP side: metrics, health, the live board, who may see them, and the server that carries them.

Answers from memory, whatever the database does.
"""
