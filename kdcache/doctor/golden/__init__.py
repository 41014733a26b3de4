"""Small images, a recipe with every step, and the witnesses of their views, never rewritten."""
