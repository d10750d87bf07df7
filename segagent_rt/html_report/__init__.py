"""Reports in one HTML file: every step as a picture, the worst cases first."""
