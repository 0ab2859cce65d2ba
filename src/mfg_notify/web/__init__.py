"""The HTTP side: metrics, health and the live board, who may see them, and the server that carries them.

Answers from memory, whatever the database does. What clients send, or leave out, costs a bounded amount of memory and a
bounded share of the event loop, and is never remembered.
"""
