"""Operations that several mixers share; torch alone."""
