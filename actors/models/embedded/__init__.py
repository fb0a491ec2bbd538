"""The model in the box: a small language model and its engine, in a child process of the runtime's.

`model` is the provider. It asks `choice` which tool fits a request, with `examples` made from the tools' schemas, shows
the model its conversation as `plain` text, and talks to the `engine`, which keeps the process of `server` alive. What has
to be installed, and where it is, knows `packages`.
"""

from ropewalk.actors.models.embedded.model import EmbeddedModel

__all__ = ["EmbeddedModel"]
