"""What google-adk does with its own services, over threadline's."""
