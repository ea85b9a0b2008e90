"""Frequent words of English, so that a reply in words of its own is still read as words and not as letters."""

from __future__ import annotations

EVERYDAY_WORDS = """
a able about above access according account across actually add additional address afraid after afterwards again
against ago agree ahead all almost alone along already also although always am amount an and another answer any anyone
anything appear application apply are area around arrange as ask assist at available away bad balance bank basis be
became become been before begin behind being believe below besides best better between bigger bit bot both bring
business but buy by call came care careful case cash cents change charged charges cheaper check checked choice choose
clear close closed come comes common company complete computer confirm confirmed contact continue correct cost could
count course cover credit currently customer daily date deal dear decide decided depends despite detail details did
difference different difficult do does doing done down during each early easily easy eight either eleven else email
end enjoy enough ensure entire euro even evening ever every everyone everything exact exactly example except exclude
extra fact fair family far fast few figure figures fill final finally find fine finish first fit five follow following
for form found four free friday friend from full further future gave general get gets getting give given gives glad go
goes going gone good got great grow had half hand happen happened happy hard has have he hello help helps her here hi
high higher him his hold home hope hour hours house how however hundred i idea if immediately important in included
includes including increase indeed information inside instead into is issue it item its itself job join just keep
keeps kind know known large larger last late later least leave left less let letter level life like line link list
little live long longer look looking looks lot low lower made mail main make makes making man many matter may me mean
means meet member mention message might mind minute minutes miss mistake moment monday money month more morning most
move much must my myself name near necessary need needed needs never new next nice night nine no none nor normal not
note nothing notice now number of off offer offers office often ok okay old on once one ones online only onto open or
other others our ours out outside over own package page part past pay paying payment people per perhaps person phone
place plan plans please plus point possible possibly prefer prepare present price problem process promise provide put
question questions quick quickly quite rather reach read ready real really reason receive received recent regards
regular remain remember remind report request requires rest result right round said same saturday save say says second
see seem seen send sending sent separate service set seven several shall she shop short should show shows side sign
simple simply since six small so some someone something sometimes soon sooner sort special spend stand start started
state stay step still stop store such sum sunday support sure system take taken takes talk tell ten term terms than
thank thanks that the their them then there these they thing things think this those though thought thousand three
through thursday till time times to together told tomorrow tonight too took top towards transfer true try tuesday turn
twelve twice two under unfortunately until up update upon us use used useful using usual usually value very via view
visit wait want wanted wants was way we wednesday week weekend weeks welcome well went were what whatever when where
whether which while who whole why will wish with within without word words work working works world worry worth would
write wrong year years yes yesterday yet you your yours yourself
"""
