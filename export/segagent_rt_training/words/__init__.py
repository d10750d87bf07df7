"""A study: can a small net find everyday objects in photos by words? Nothing of it is shipped."""
