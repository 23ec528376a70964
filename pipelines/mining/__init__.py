"""Find samples worth a look: alike, rare, uncertain or disagreeing ones, for label queues and training sets."""
