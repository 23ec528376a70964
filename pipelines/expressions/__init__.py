"""The expression language of policies, contracts and sets: text in, one meaning for every engine out. See docs/expressions.md."""
