"""Conversations to prompts: messages, templates, and the sandbox that renders them."""
