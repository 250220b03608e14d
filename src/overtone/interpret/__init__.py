"""What single latents stand for, and scores of how well that can be said."""
