"""What a model is: the protocol every provider keeps. Thirty lines make a custom one."""

from ropewalk.actors.models.protocol import Model, resolve

__all__ = ["Model", "resolve"]
