"""Diagnose from outside what keeps an agent from doing its work; each finding has a remedy."""
