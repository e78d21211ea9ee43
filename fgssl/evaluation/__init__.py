"""Evaluation shared by all methods: embedding, exact search, and the protocols that use them."""
