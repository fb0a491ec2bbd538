"""What makes an actor a conversation: the turn machine, the view, the session, its models, tools and handlers."""
