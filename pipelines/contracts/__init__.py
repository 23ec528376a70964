"""Contracts: ODCS documents, Arrow schemas and vectorised checks from them."""
