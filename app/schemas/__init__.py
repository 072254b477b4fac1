"""Bodies of requests and answers, as OpenAPI shows them, by who sends them where."""
