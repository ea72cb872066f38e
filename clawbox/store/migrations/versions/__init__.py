"""One module for each version of the schema. What was released once is never changed."""
