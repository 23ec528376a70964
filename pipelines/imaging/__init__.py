"""Imaging: huge images to chips in bounded memory."""
