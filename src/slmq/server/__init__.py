"""Models behind HTTP, in the words of the clients that people have; `slmq serve` starts it.

Nothing is decided here that changes an answer: every API is put into one kind of request, which the
scheduler of the model answers.
"""
