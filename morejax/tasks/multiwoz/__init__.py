"""MultiWOZ 2.2 and corpora in its layout: reader, database, scorer and reward streams."""
