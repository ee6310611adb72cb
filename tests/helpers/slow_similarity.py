"""Similarity of a prompt to edited prompts, token by token and one cosine at a time."""


def similarity(plugin, edited, prompt, subject_share):
    """Similarity to the nearest edit: of (prompt, subject) pairs, how near are its tokens to the edit's?"""
    rows_VD = plugin.model.get_input_embeddings().weight[: plugin.weight_id].detach()
    centre_D = rows_VD.mean(dim=0)

    def nearest(token, others):
        one_D = rows_VD[token] - centre_D
        return max(
            float(one_D @ (rows_VD[n] - centre_D) / (one_D.norm() * (rows_VD[n] - centre_D).norm())) for n in others
        )

    def tokens(text):
        """Id, and characters in the text after a space."""
        read = plugin.tokenizer(" " + text, return_offsets_mapping=True)
        pairs = zip(read["input_ids"], read["offset_mapping"], strict=True)
        return [(token, range(*span)) for token, span in pairs if token not in plugin.tokenizer.all_special_ids]

    def to(edit, subject):
        start = 1 + edit.rindex(subject) if subject else 0
        of_subject, of_others = [], []
        for token, span in tokens(edit):
            is_inside = set(span) & set(range(start, start + len(subject)))
            (of_subject if is_inside else of_others).append(nearest(token, [other for other, _ in tokens(prompt)]))
        if not of_subject or not of_others:
            every = of_subject + of_others
            return sum(every) / len(every)
        return subject_share * sum(of_subject) / len(of_subject) + (1 - subject_share) * sum(of_others) / len(of_others)

    return max(to(edit, subject) for edit, subject in edited)
