"""The steps in their order; a step that was released is never edited, a new one follows it."""
