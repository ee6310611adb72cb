"""Names that break out of LaTeX, HTML, Markdown, JSON or a shell where they are not escaped."""

NAMES = (
    "50% of it", "A & B", "$100", "#1", "snake_case", "{braces}", "}{", "~tilde", "x^2", r"C:\temp\new",
    r"\textbf{bold}", r"\input{/etc/passwd}", r"\end{tabular}", r"\\", "$x_1$", "$$", "%%%", "_a_ *b* **c**", "`code`", "```",
    "[link](http://example.org)", "![image](x)", "# heading", "> quote", "- item", "1. item", "a|b", "|", "<b>bold</b>",
    "<script>window.hacked = 1</script>", "</script><script>window.hacked = 2</script>", "<img src=x onerror=window.hacked=3>",
    "<!-- comment", "]]>", "&lt;b&gt;", "&amp;", "\"double\"", "'single'", "\" onmouseover=\"window.hacked = 4",
    "{{ 7 * 7 }}", "{% raw %}", "<< name >>", "<% for x in y %>", "Übermensch", "日本語", "émigré – dash", "emoji 🙂",
    "tab\there", "line\nbreak", "zero\u2028width\u200b",
)  # fmt: skip
