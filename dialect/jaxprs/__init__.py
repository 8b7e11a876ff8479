"""Between jaxprs and graphs, both ways."""
