"""What an edited model is asked, how its answers are scored, and what they are compared with."""
