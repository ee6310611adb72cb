"""General ability before and after editing: benchmark tasks asked through lm-eval (the extra `capability`)."""
