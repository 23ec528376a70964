"""What keeps an agent from doing its work, looked for from outside; each finding with its remedy."""
