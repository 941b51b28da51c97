"""Control groups of containers: what they tell, their limits, moving processes between them."""
