"""Handlers in the style of keyword callbacks: printing, several as one, and the adapter from typed events."""

from ropewalk.actors.handlers.callbacks import CALLBACK_KINDS, CallbackAdapter, TurnCallbacks, ending
from ropewalk.actors.handlers.composite import CompositeCallbackHandler
from ropewalk.actors.handlers.printing import PrintingCallbackHandler

__all__ = ["CALLBACK_KINDS", "CallbackAdapter", "CompositeCallbackHandler", "PrintingCallbackHandler", "TurnCallbacks", "ending"]
