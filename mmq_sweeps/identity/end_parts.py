"""The two parts at the ends of the text: what its tokens become, and what becomes of the last hidden state."""

EMBEDDINGS, HEAD = "embeddings", "head"
# Part -> label in tables. Unlike the parts of ``model.parts`` they are one weight each, without blocks and layer kinds.
END_PARTS = {EMBEDDINGS: "token embeddings", HEAD: "output layer"}
