"""What the commands of ``ropewalk`` share: what is drawn and how, what is measured, and what is named by users."""
