"""``ropewalk chat``: a conversation with a model on a terminal, or through a pipe. Nothing here is imported by the library."""

from ropewalk.actors.chat.chat import Chat, ChatOptions, run_chat

__all__ = ["Chat", "ChatOptions", "run_chat"]
